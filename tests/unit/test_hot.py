"""A hot file: whatever happens to it, the value is a whole good version, and what is wrong is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml

from serve.errors import InvalidConfig
from serve.hot import Hot, HotFiles


def parse(file: str, text: str) -> list[int]:
    try:
        return [int(word) for word in str(yaml.safe_load(text)).split()]
    except ValueError as error:
        raise InvalidConfig(f"{file}:1: {error}") from error


def hot(path: Path | None, **more: object) -> Hot[list[int]]:
    return Hot("numbers", path, parse, [], **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.yaml"
    path.write_text("1 2")
    return path


async def until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.02)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Callable[[Path], Hot[list[int]]]]:
    tasks: list[asyncio.Task[None]] = []

    async def watch(path: Path) -> Hot[list[int]]:
        number = hot(path)
        await number.open()
        tasks.append(asyncio.create_task(HotFiles(number).watch()))
        return number

    yield watch
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_new_version_is_swapped_in_once(file: Path) -> None:
    numbers = hot(file)
    await numbers.open()
    first = numbers.status
    assert (numbers.value, first.source) == ([1, 2], "numbers.yaml")
    assert not await numbers.refresh()
    file.write_text("3")
    assert await numbers.refresh()
    assert numbers.value == [3]
    assert numbers.status.hash != first.hash


async def test_a_bad_version_changes_nothing_but_the_status(file: Path) -> None:
    numbers = hot(file)
    await numbers.open()
    before = numbers.status
    file.write_text("x")
    for _ in range(2):
        with pytest.raises(InvalidConfig, match=r"numbers\.yaml:1: invalid literal"):
            await numbers.refresh()
    assert numbers.value == [1, 2]
    assert (numbers.status.hash, numbers.status.loaded_at) == (before.hash, before.loaded_at)
    assert "invalid literal" in (numbers.status.error or "")


@pytest.mark.parametrize("again", ["1 2", "3"])
async def test_a_good_version_after_a_bad_one_ends_the_error(file: Path, again: str) -> None:
    numbers = hot(file)
    await numbers.open()
    file.write_text("x")
    with pytest.raises(InvalidConfig):
        await numbers.refresh()
    file.write_text(again)
    assert await numbers.refresh() == (again == "3")
    assert (numbers.value, numbers.status.error) == (parse("", again), None)


async def test_a_file_that_goes_away_and_comes_back(file: Path) -> None:
    numbers = hot(file)
    await numbers.open()
    file.rename(file.with_name("elsewhere"))
    with pytest.raises(InvalidConfig, match="cannot be read: No such file"):
        await numbers.refresh()
    assert numbers.value == [1, 2]
    file.with_name("elsewhere").rename(file)
    assert not await numbers.refresh()
    assert numbers.status.error is None


async def test_who_starts_while_the_file_is_bad_has_the_last_good_version(file: Path, tmp_path: Path) -> None:
    spare = tmp_path / "hot" / "numbers.yaml"
    await hot(file, spare=spare).open()
    file.write_text("x")
    numbers = hot(file, spare=spare)
    await numbers.open()
    assert (numbers.value, numbers.status.source) == ([1, 2], "the last good version")
    assert "invalid literal" in (numbers.status.error or "")


async def test_a_given_document_takes_the_place_of_the_file_until_it_is_taken_back(file: Path) -> None:
    numbers = hot(file)
    files = HotFiles(numbers)
    await files.open()
    await files.give({"numbers": 7})
    assert (numbers.value, numbers.status.source) == ([7], "user_config")
    file.write_text("8")
    await files.look()
    assert numbers.value == [7]
    await files.give({"numbers": "x"})  # a replica that raised here would be lost
    assert numbers.value == [7]
    await files.give({})
    assert numbers.value == [8]


async def test_reloading_tells_the_others_and_all_that_is_wrong(file: Path, tmp_path: Path) -> None:
    told: list[int] = []

    async def announce() -> None:
        told.append(1)

    other = tmp_path / "other.yaml"
    other.write_text("1")
    good, bad = hot(file), hot(other)
    files = HotFiles(good, bad, announce=announce)
    await files.open()
    file.write_text("5")
    other.write_text("x")
    with pytest.raises(InvalidConfig, match=r"other\.yaml:1"):
        await files.reload()
    assert (good.value, bad.value, told) == ([5], [1], [1])


async def test_a_file_that_is_being_written_is_looked_at_again(file: Path) -> None:
    numbers = hot(file)
    await numbers.open()
    file.write_text("")  # as `>` begins
    looking = asyncio.create_task(numbers.refresh())
    await asyncio.sleep(0.02)
    file.write_text("9")
    assert await looking
    assert (numbers.value, numbers.status.error) == ([9], None)


async def test_many_looks_at_once_end_with_the_newest(file: Path) -> None:
    numbers = hot(file)
    await numbers.open()
    looks = []
    for i in range(50):
        scratch = file.with_name("scratch")
        scratch.write_text(str(i))
        scratch.replace(file)
        looks.append(asyncio.create_task(numbers.refresh()))
        await asyncio.sleep(0)
    await asyncio.gather(*looks)
    assert numbers.value == [49]


async def test_a_saved_file_is_seen(file: Path, watched: Callable) -> None:
    numbers = await watched(file)
    file.write_text("4")
    await until(lambda: numbers.value == [4])
    scratch = file.with_name("scratch")
    scratch.write_text("5")
    scratch.replace(file)  # as editors save
    await until(lambda: numbers.value == [5])


async def test_the_swap_of_a_config_map_is_seen(tmp_path: Path, watched: Callable) -> None:
    """Kubernetes writes a new folder, and points `..data` there by renaming a link: the file itself never changes."""
    mount = tmp_path / "mount"
    for version, text in (("..1", "1"), ("..2", "2"), ("..3", "x"), ("..4", "4")):
        (mount / version).mkdir(parents=True)
        (mount / version / "numbers.yaml").write_text(text)

    def swap(version: str) -> None:
        (mount / "..data_tmp").symlink_to(version)
        (mount / "..data_tmp").rename(mount / "..data")

    swap("..1")
    (mount / "numbers.yaml").symlink_to("..data/numbers.yaml")
    numbers = await watched(mount / "numbers.yaml")
    swap("..2")
    await until(lambda: numbers.value == [2])
    swap("..3")
    await until(lambda: numbers.status.error is not None)
    assert numbers.value == [2]
    swap("..4")
    await until(lambda: numbers.value == [4])


async def test_what_the_file_system_does_not_tell_is_seen_by_looking(
    file: Path, watched: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link whose target changes in another folder raises no event in the watched one."""
    monkeypatch.setattr("serve.hot.LOOK_EVERY_MS", 200)
    link = file.parent / "mount" / "numbers.yaml"
    link.parent.mkdir()
    link.symlink_to(file)
    numbers = await watched(link)
    file.write_text("6")
    await until(lambda: numbers.value == [6])


async def test_no_file_is_no_error() -> None:
    numbers = hot(None)
    await numbers.open()
    assert (numbers.value, numbers.status.source, numbers.status.error) == ([], "none", None)


async def test_a_spare_that_cannot_be_kept_harms_nobody(file: Path, tmp_path: Path) -> None:
    (tmp_path / "hot").write_text("a file where the folder would be")
    numbers = hot(file, spare=tmp_path / "hot" / "numbers.yaml")
    await numbers.open()
    assert (numbers.value, numbers.status.error) == ([1, 2], None)


async def test_a_folder_that_goes_away_and_comes_back(
    tmp_path: Path, watched: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.hot.LOOK_EVERY_MS", 200)
    folder = tmp_path / "mount"
    folder.mkdir()
    (folder / "numbers.yaml").write_text("1")
    numbers = await watched(folder / "numbers.yaml")
    folder.rename(tmp_path / "gone")
    await until(lambda: numbers.status.error is not None)
    folder.mkdir()
    (folder / "numbers.yaml").write_text("2")
    await until(lambda: numbers.value == [2])
    (folder / "numbers.yaml").write_text("3")
    await until(lambda: numbers.value == [3])
