"""What runs on a node: it answers the server's messages; private data and states stay here."""
