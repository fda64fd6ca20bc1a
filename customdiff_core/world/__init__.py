"""The embedded `openmoji` world: captioned scenes of drawings, made offline in seconds. No torch, no network."""
