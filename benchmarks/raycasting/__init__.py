"""What benchmarks/raycasting_pictures.py shows: popping, images of wide lenses, depth of field."""
