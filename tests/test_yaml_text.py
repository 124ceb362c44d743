"""Whatever a YAML file holds, it is read or refused in one line."""

from pathlib import Path

import pytest
import yaml

from endprompt import recipe, yaml_text
from endprompt.data.mixture import load_mixture
from endprompt.errors import EndPromptError
from endprompt.sft import settings

UNREADABLE = {
    "nested": "a: " + "[" * 100_000,
    "digits": "a: " + "9" * 10_000,
    "date": "a: 2024-13-45",
    "tag": "!!python/object:os.system []",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_text_is_a_yaml_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml_text.load(text)


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_every_yaml_file_of_a_user_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for read in (recipe.load, load_mixture, lambda file: settings.load(file, {})):
        with pytest.raises(EndPromptError) as refused:
            read(path)
        assert "\n" not in str(refused.value)
        assert "mine.yaml" in str(refused.value)


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_override_is_refused(text: str) -> None:
    with pytest.raises(EndPromptError):
        recipe.parse_overrides([f"training.seed={text.removeprefix('a: ')}"])
