"""Any audio encoder of transformers whose front end can be told from its configuration."""
