"""The command `carv`: one file a command, each with its arguments."""
