"""The page of `raygauss-view` is not published, and does nothing that viser's client can't do."""

import inspect

from ns_support.viewer import page


def test_nothing_is_published_and_the_theme_stays(capsys):
    assert page._refuse_to_share() is None
    assert "not published" in " ".join(capsys.readouterr().out.split())
    source = inspect.getsource(page.Page)
    assert "request_share_url" in source
    # A theme without the button ends viser 0.2.7's client in React's error 300: a blank page.
    assert "show_share_button" not in source
