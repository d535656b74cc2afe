"""What a command prints, how it starts and how it ends."""
