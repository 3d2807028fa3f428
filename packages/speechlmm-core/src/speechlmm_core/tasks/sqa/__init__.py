"""Questions about speech, and spoken questions."""
