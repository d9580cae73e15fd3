"""How far one Redis, one API process and many workers go."""
