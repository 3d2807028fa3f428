"""Chat messages, templates and their exact tokenisation."""
