"""Next-token prediction over the supervised positions."""
