"""The built-in formats of rayds; found by entry points, imported when used."""
