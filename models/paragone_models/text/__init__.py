"""From conversations to tokens: messages, chat templates, cuts and read positions."""
