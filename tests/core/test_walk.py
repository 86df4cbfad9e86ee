"""Recursive listing of folders, and names."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from piti.core.images import ImageError
from piti.core.walk import BROKEN, UNREAD, by_key, key_of, list_images, stem_of, walk


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_list_images_sorts_and_leaves_out_what_is_hidden(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "sub/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [path.name for path in list_images(tmp_path, recursive=True)] == [
        "a.jpg",
        "b.PNG",
        "c.webp",
    ]
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "none")


class TestLinks:
    def test_linked_folders_are_walked_and_a_loop_ends(self, tmp_path):
        touch(tmp_path, "data/a/1.png", "elsewhere/b/2.png")
        (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere/b")
        (tmp_path / "elsewhere/b/back").symlink_to(tmp_path / "data")
        found = walk(tmp_path / "data")
        assert [key_of(path, tmp_path / "data") for path in found.files] == ["a/1", "b/2"]

    def test_links_that_lead_nowhere_are_named_whatever_they_are_of(self, tmp_path):
        touch(tmp_path, "1.png")
        for name in ("2.png", "site", ".hidden"):
            (tmp_path / name).symlink_to(tmp_path / "gone")
        (tmp_path / "ring").symlink_to("ring")
        found = walk(tmp_path)
        assert found.lost() == [(BROKEN, tmp_path / name) for name in ("2.png", "ring", "site")]
        with pytest.raises(ImageError, match=r"3 broken links .*2\.png"):
            found.check()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_a_folder_that_cannot_be_listed_is_an_error(self, tmp_path):
        touch(tmp_path, "a/1.png")
        (tmp_path / "a").chmod(0)
        with pytest.raises(ImageError, match="cannot be listed"):
            walk(tmp_path)


class TestFormats:
    def test_what_pillow_reads_is_found(self, tmp_path):
        names = ["0.avif", "1.gif", "2.jfif", "3.jp2", "4.PGM", "5.tga", "6.qoi", "7.jpe"]
        touch(tmp_path, *names, "8.txt")
        assert [path.name for path in walk(tmp_path).files] == names

    def test_pictures_that_are_not_read_are_named_unless_another_stands_for_them(self, tmp_path):
        touch(tmp_path, "a.heic", "b.psd", "b.png", "c.json")
        assert walk(tmp_path).lost() == [(UNREAD, tmp_path / "a.heic")]


class TestNames:
    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
    def test_bytes_of_another_encoding_are_written_out(self, tmp_path):
        path = tmp_path / os.fsdecode(b"stra\xdfe/caf\xe9.png")
        assert key_of(path, tmp_path) == "stra%DFe/caf%E9"
        assert stem_of(path, tmp_path).encode() == b"stra%DFe-caf%E9"

    def test_composed_and_decomposed_names_are_one(self, tmp_path):
        name = unicodedata.normalize("NFD", "café/ガ")
        touch(tmp_path, f"{name}.png")
        (path,) = walk(tmp_path).files
        assert key_of(path, tmp_path) == unicodedata.normalize("NFC", name)

    def test_stems_of_subfolders_do_not_collide_with_files_above(self, tmp_path):
        touch(tmp_path, "s2.png", "b/s2.png")
        assert [stem_of(path, tmp_path) for path in walk(tmp_path).files] == ["b-s2", "s2"]

    def test_two_files_of_one_key(self, tmp_path):
        touch(tmp_path, "s.png", "s.jpg")
        files, twice = by_key(walk(tmp_path).files, tmp_path)
        assert list(files) == ["s"]
        assert list(twice) == ["s"]
