"""Memory of many photographs, at a size of a few seconds."""

import json
import sys


def test_every_size_is_reached(script, tmp_path, monkeypatch):
    module, output = script("many_photographs"), tmp_path / "memory.json"
    words = ["--count", "12", "--width", "240", "--height", "220", "--steps", "10", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["many_photographs.py", *words])
    module.main()
    points = json.loads(output.read_text())["points"]
    assert [(point["step"], point["downscales"]) for point in points] == [(1, 1), (7, 0), (10, 0)]
    assert 0 < points[0]["peak_gib"] <= points[-1]["peak_gib"]
