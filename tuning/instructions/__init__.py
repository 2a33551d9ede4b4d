"""``generate-instructions``: training data from captions and boxes, written by a language model at a chat server.

``config`` has the options, ``generate`` asks and writes, ``table`` counts what came of it, ``dry_run`` counts tokens.
``tasks.instructions`` has the prompts and the rules, ``tasks.chat_server`` the client.
"""
