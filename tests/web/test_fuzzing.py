"""No question makes the server fail: requests made from the API's own description, and addresses that nobody would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from saescope.store import Store
from saescope.web.app import create_app

pytestmark = pytest.mark.slow

NAME = "tiny <b>topk</b>"
_SECONDS_WORTH = 12  # requests per operation and kind; all of them take about a minute


@pytest.fixture
def app(store: Store, fake_live: Any) -> Any:
    return create_app(store, live=fake_live)


def operations(app: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_requests_made_from_the_description_are_answered_as_it_says(app: Any, store: Store):
    """Of every operation some hundred, valid and not; names and indices are known ones in half of them."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS, not_a_server_error

    config = schemathesis.Config()
    config.projects.default.generation.modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app, config=config, headers={"host": "localhost"})
    checks = [not_a_server_error, *CHECKS.get_by_names(["status_code_conformance", "content_type_conformance"])]
    asked: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        cases = st.one_of(
            operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
            operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
        )

        @settings(
            max_examples=_SECONDS_WORTH,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases, is_known=st.booleans(), index=st.sampled_from([3, 5, 7, 9]))
        def one(case: Any, is_known: bool, index: int) -> None:
            if is_known and isinstance(case.path_parameters, dict):
                for key, value in (("name", NAME), ("index", index)):
                    if key in case.path_parameters:
                        case.path_parameters[key] = value
            answer = case.call_and_validate(checks=checks, headers={"host": "localhost"})
            asked.setdefault(case.operation.label, set()).add(answer.status_code)

        one()
    assert set(asked) == {f"{method.upper()} {path}" for path, method, _ in operations(app)}
    met = sorted(label for label, statuses in asked.items() if any(status < 300 for status in statuses))
    assert len(met) >= 0.6 * len(asked), sorted(set(asked) - set(met))  # it is no test of refusals alone


STRANGE = [
    "", "x", "a/b", "../../etc/passwd", "%", "%zz", "\x00", "a\x00b", "\n", "<script>alert(1)</script>", "'\";--", "漢字",
    "\u202e", "x" * 3000, ".", "..", "?", "#", " ", "+", "🙂", "f", "f/3", "NaN", "null",
]  # fmt: skip
RAW = ["%00", "%ff", "%c0%80", "%ed%a0%80", "%F0%28%8C%BC", "%2e%2e%2f", "%5c", "%25%30%30", "%0d%0aset-cookie:a=b"]
NUMBERS = [
    "-1", "0", "1e3", "3.0", "007", "99999", "2147483648", "4294967296", "9007199254740992", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1" * 400, "1" * 5000, "nan", "NaN", "inf", "-Infinity", "1e400",
    "1e-400", "٣", "0x10", "1_000", "true", "", "null", "[]", "3;3", "3%203",
]  # fmt: skip


BOUNDS = ("min_density", "max_num_firings", "min_index", "max_explanation_score", "min_lift")  # all are made alike


def answered(client: Any, method: str, path: str, **given: Any) -> Any:
    answer = client.request(method, path, follow_redirects=False, **given)
    assert answer.status_code < 500, (method, path[:300], answer.text[:500])
    if answer.status_code >= 400 and method != "HEAD":
        if path.startswith("/api"):
            assert set(answer.json()) == {"error"}
            assert answer.json()["error"]["status"] == answer.status_code
            assert answer.json()["error"]["message"]
        else:
            assert answer.headers["content-type"].startswith("text/html")
            assert answer.text.count("<h1") == 1
    if answer.headers.get("content-type", "").startswith("text/html"):
        assert "<script>alert" not in answer.text
    assert "Traceback" not in answer.text
    return answer


def kinds_of_pages() -> list[str]:
    kinds = ["", "/f/{i}", "/map", "/try", "/steer", "/training", "/random"]
    return [f"{start}/d/{{n}}{kind}" for start in ("", "/api") for kind in kinds]


@pytest.mark.parametrize("page", kinds_of_pages())
def test_strange_names_and_numbers_are_answered_in_words(client: Any, page: str):
    for name in [quote(each, safe="") for each in STRANGE] + RAW:
        answered(client, "GET", page.format(n=name, i=3))
        answered(client, "GET", page.format(n=quote(NAME, safe=""), i=3) + f"?analysis={name}")
    for number in NUMBERS if "{i}" in page else []:
        answered(client, "GET", page.format(n=quote(NAME, safe=""), i=number))


def test_every_parameter_bears_anything(client: Any, app: Any):
    """Each parameter that the description has, and that pages have under the same names, one after the other."""
    known = {"name": quote(NAME, safe=""), "index": "3"}
    tried = place = 0
    for path, method, operation in operations(app):
        if method != "get":
            continue
        address = path.replace("{name}", known["name"]).replace("{index}", known["index"])
        for parameter in operation.get("parameters", ()):
            name, is_bound = parameter["name"], parameter["name"].startswith(("min_", "max_"))
            if parameter["in"] != "query" or (is_bound and name not in BOUNDS):
                continue
            texts = [] if is_bound else [*(quote(each, safe="") for each in STRANGE), *RAW]
            place += 1
            for value in [*NUMBERS, *texts][place % 3 :: 3]:  # every value somewhere, and many of them everywhere
                query = f"?{quote(name)}={value}"
                answered(client, "GET", address + query)
                page = address.removeprefix("/api").removesuffix("/features")
                tried += answered(client, "GET", page + query).status_code != 404
    assert tried > 100


def body_schema(app: Any, operation: dict[str, Any]) -> dict[str, Any] | None:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    while body and "$ref" in body:
        body = app.openapi()["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    return body


BODIES: list[Any] = [
    None, True, 0, -1, 1e308, "", "x", [], [[]], {}, [None], "x" * 30_000, "\x00", 2**53, 2**63, 2**64, 10**400, -(2**70),
    1.5, {"text": {}}, [1] * 20_000,
]  # fmt: skip
RAW_VALUES = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\u0000"',
    "[" * 5000 + "]" * 5000,
]


def test_every_field_of_a_body_bears_anything(client: Any, app: Any):
    known = {"{name}": quote(NAME, safe=""), "{index}": "3"}
    tried = 0
    for path, method, operation in operations(app):
        schema = body_schema(app, operation)
        if schema is None:
            continue
        for placeholder, value in known.items():
            path = path.replace(placeholder, value)
        path = path.replace("{identity}", "1")
        usual = {name: sample(app, field) for name, field in schema.get("properties", {}).items()}
        for name in [*usual, "something"]:
            for value in [json.dumps(value) for value in BODIES] + RAW_VALUES:
                fields = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in usual.items() if k != name]
                body = "{" + ",".join([*fields, f"{json.dumps(name)}:{value}"]) + "}"
                headers = {"content-type": "application/json"}
                answered(client, method.upper(), path, content=body.encode(), headers=headers)
                tried += 1
        for whole in [json.dumps(value) for value in BODIES] + RAW_VALUES:
            answered(client, method.upper(), path, content=whole.encode(), headers={"content-type": "application/json"})
    assert tried > 100


def sample(app: Any, field: dict[str, Any]) -> Any:
    """A value that the field takes."""
    while "$ref" in field:
        field = app.openapi()["components"]["schemas"][field["$ref"].rpartition("/")[2]]
    for options in ("anyOf", "oneOf"):
        if options in field:
            return sample(app, field[options][0])
    if "const" in field or "enum" in field:
        return field.get("const", field.get("enum", [None])[0])
    match field.get("type"):
        case "string":
            return "self " * max(1, field.get("minLength", 1) // 5)
        case "integer" | "number":
            return max(3, field.get("minimum", 0)) if field.get("maximum", 9) >= 3 else field["maximum"]
        case "boolean":
            return True
        case "array":
            return [sample(app, field["items"])] if "items" in field else []
        case "object":
            return {name: sample(app, each) for name, each in field.get("properties", {}).items()}
    return None


def test_what_is_removed_twice_is_not_there(client: Any, app: Any):
    """Numbers in addresses that no database keeps, for methods that change something."""
    for path, method, _ in operations(app):
        if method not in ("delete", "put", "patch", "post") or "{" not in path:
            continue
        for number in NUMBERS:
            if not number:
                continue
            address = path.replace("{name}", quote(NAME, safe="")).replace("{tag}", "a%00b")
            while "{" in address:
                start, end = address.index("{"), address.index("}")
                address = address[:start] + quote(number) + address[end + 1 :]
            answered(client, method.upper(), address, json={})


def test_other_methods_are_refused_everywhere(client: Any, app: Any, client_of: Callable[..., Any]):
    for path, _, _ in operations(app):
        address = path.replace("{name}", quote(NAME, safe="")).replace("{index}", "3")
        for method in ("HEAD", "OPTIONS", "TRACE", "BREW", "PUT", "DELETE", "PATCH", "POST"):
            answered(client, method, address)
