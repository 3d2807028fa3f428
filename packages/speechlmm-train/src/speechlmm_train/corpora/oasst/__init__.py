"""OpenAssistant conversations: trees of messages with people's ratings."""
