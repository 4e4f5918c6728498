import pytest

from qa_hpo.demo.corpus import CORPORA, generate, to_squad


@pytest.fixture(scope="session")
def articles():
    return generate()


@pytest.fixture(scope="session")
def corpora(articles):
    return {spec.name: to_squad(spec, articles[spec.name]) for spec in CORPORA}
