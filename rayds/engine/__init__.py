"""Engines: what runs stages over blocks, in this process (local) or on Ray."""
