"""The demo: a speech LLM trained and shown on a synthetic corpus."""
