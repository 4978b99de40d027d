"""The built-in ops of rayds; found by entry points, imported when used."""
