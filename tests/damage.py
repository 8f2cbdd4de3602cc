"""Damage to files, by structure and by bytes, from a random state of one's own."""

from __future__ import annotations

import json

from regtune.errors import RegtuneError
from regtune.records import read_json, write_json

MUTANTS = (None, True, -1, 10**40, 10**400, 1e308, "NaN", "x\ud800", "../../x", [], {}, [[]], {"": None})


def mutated(content, random):
    """One place of a JSON value removed, renamed or given another value."""
    content = json.loads(json.dumps(content))
    places = []

    def walk(value):
        if isinstance(value, (dict, list)):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key])

    walk(content)
    if not places or random.random() < 0.02:
        return random.choice(MUTANTS)
    place, key = random.choice(places)
    if random.random() < 0.3:
        del place[key]
    elif isinstance(place, dict) and random.random() < 0.2:
        place[f"{key}x"] = place.pop(key)
    else:
        place[key] = random.choice(MUTANTS)
    return content


def flipped(raw, random):
    """One bit of a file changed, or its end cut off."""
    at = random.randrange(len(raw))
    return raw[:at] if random.random() < 0.2 else raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :]


def damage(path, random):
    """A JSON file with one place of its structure, or one bit, changed."""
    if random.random() < 0.5:
        write_json(path, mutated(read_json(path), random))
    else:
        path.write_bytes(flipped(path.read_bytes(), random))


def refusal(read, folder):
    """What regtune says where something can't be read: bounded, with its place; nothing if it is read after all."""
    try:
        read()
    except RegtuneError as error:
        said = str(error)
        assert str(folder) in said
        assert len(said) < 5_000
        return said
    return ""
