"""The drawn layers that are kept: once each, and no more bytes than allowed."""

from __future__ import annotations

import threading

import torch

from dual_process import overlays
from dual_process.overlays import HorizonLine, stack
from dual_process.overlays.drawn import DrawnLayers

ONE = 4 * 8 * 8 * 4  # bytes of an RGBA picture of 8 × 8


class Counting:
    """A layer that counts how often it is drawn; `started` is set and `go` waited for as it is."""

    def __init__(self):
        self.drawn, self.started, self.go = 0, threading.Event(), threading.Event()
        self.go.set()

    def draw(self, height, width):
        self.drawn += 1
        self.started.set()
        assert self.go.wait(300)
        return torch.zeros(4, height, width)


def test_no_more_bytes_are_kept_than_allowed_and_the_oldest_go_first():
    layers, cache = [Counting() for _ in range(4)], DrawnLayers(3 * ONE)
    for layer in layers[:3] + layers[:1]:
        cache.get(layer, 8, 8)
    assert [layer.drawn for layer in layers] == [1, 1, 1, 0]
    cache.get(layers[3], 8, 8)  # the second was used longest ago
    for layer in (layers[0], layers[2], layers[3]):
        cache.get(layer, 8, 8)
    assert [layer.drawn for layer in layers] == [1, 1, 1, 1]
    cache.get(layers[1], 8, 8)
    assert layers[1].drawn == 2


def test_each_size_is_drawn_once():
    layer, cache = Counting(), DrawnLayers(100 * ONE)
    sizes = [(8, 8), (8, 16), (16, 8)]
    assert [tuple(cache.get(layer, *size).shape[1:]) for size in sizes * 3] == sizes * 3
    assert layer.drawn == 3


def test_a_picture_over_the_bound_is_drawn_but_not_kept():
    small, large, cache = Counting(), Counting(), DrawnLayers(ONE)
    cache.get(small, 8, 8)
    for _ in range(2):
        assert cache.get(large, 8, 9).shape == (4, 8, 9)
    assert large.drawn == 2
    cache.get(small, 8, 8)
    assert small.drawn == 1


def test_two_threads_that_want_the_same_draw_it_once():
    layer, cache, seen = Counting(), DrawnLayers(ONE), []
    layer.go.clear()
    threads = [threading.Thread(target=lambda: seen.append(cache.get(layer, 8, 8))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert layer.started.wait(300)
    layer.go.set()
    for thread in threads:
        thread.join(300)
    assert layer.drawn == 1
    assert len(seen) == 4
    assert all(picture is seen[0] for picture in seen)


def test_the_overlays_own_bound_is_256_megabytes(monkeypatch):
    draws = []
    draw = HorizonLine.draw
    monkeypatch.setattr(HorizonLine, "draw", lambda self, h, w: draws.append(self.position) or draw(self, h, w))
    monkeypatch.setattr(stack, "_DRAWN", DrawnLayers(stack._DRAWN._most_bytes))
    lines = [overlays.horizon(0.1 + 0.01 * i, 0.015) for i in range(17)]
    picture = torch.zeros(1, 3, 1024, 1024)  # an overlay of 16 MB
    for line in [*lines[:16], *lines[:16], lines[16], lines[0]]:
        line.apply(picture)
    assert [draws.count(line.layers[0].position) for line in lines] == [2, *[1] * 16]
