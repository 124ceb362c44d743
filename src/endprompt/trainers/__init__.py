"""Other people's trainers: rows for them, and the guard of their first batch."""
