"""The plain contenders: what one would write without this project."""
