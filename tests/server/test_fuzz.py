"""Whatever the OpenAPI schema allows, and what it does not, is answered: never with a 5xx."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from server.options import ServerOptions
from tests.fakes import FakeEngine, FakeModel

from .conftest import make_app

app = make_app(FakeEngine(), FakeModel(), ServerOptions())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
schema.config.generation.update(modes=list(GenerationMode))
# Edits and variations answer 501, as they should.
IMAGES = schema.include(path="/v1/images/generations")


@IMAGES.parametrize()
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_server(case: schemathesis.Case) -> None:
    case.call_and_validate(
        checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
    )
