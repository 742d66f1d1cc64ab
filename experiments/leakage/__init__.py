"""What the reply of a client tells about its histories."""
