"""Text: documents, chats, packed rows of tokens."""
