"""A prompt tried live: which features fire on it, edits of them, and how it goes on.

Everything is a function of a :class:`~monolex.live.session.LiveModel` and a :class:`~monolex.live.prompt.LivePrompt`,
which holds exact token ids: a prompt that is written down by its ids is read again as the same.
"""
