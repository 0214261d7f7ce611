"""How long a call takes, by how it ends, and where the time goes."""
