"""A dataset reader of a third party: subtitles."""
