"""The built-in launchers of rayds; found by entry points, imported when used."""
