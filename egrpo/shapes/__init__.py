"""The embedded world: scenes of coloured, textured shapes, an oracle that reads them, and a tiny Janus that draws them.

The rest of the package reaches it only through configuration (prompt files, model directory, oracle rewards).
"""
