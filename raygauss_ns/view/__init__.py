"""`raygauss-view`: trained scenes in a browser, without nerfstudio's trainer."""
