"""Arms times bases: what each gave, and paired differences with intervals."""
