"""What one client does in a round: windows, steps, losses, and many clients at once."""
