"""Ask a model about a long text: `conversation.py` keeps what was read, `server.py` the page."""

from endprompt.chat.conversation import Conversation

__all__ = ["Conversation"]
