import llm_cache
import llm_cache.calibrate
import llm_cache.testing
import llm_cache.verify


def test_public_names_are_sorted_and_exist():
    for module in (llm_cache, llm_cache.testing, llm_cache.calibrate, llm_cache.verify):
        assert list(module.__all__) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_everything_public_is_documented():
    for module in (llm_cache, llm_cache.testing, llm_cache.calibrate, llm_cache.verify):
        for name in module.__all__:
            thing = getattr(module, name)
            assert thing.__doc__, name
            if isinstance(thing, type):
                own = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
                for method, function in own.items():
                    if callable(function) or isinstance(function, property):
                        assert function.__doc__, f"{name}.{method}"


def test_errors_form_one_tree():
    from llm_cache import errors

    exceptions = [e for e in vars(errors).values() if isinstance(e, type)]
    assert all(issubclass(e, errors.LLMCacheError) for e in exceptions)
    assert all(e.__name__ in (errors.__doc__ or "") for e in exceptions)


def test_errors_survive_the_way_out_of_a_worker():
    import pickle

    from llm_cache.errors import MissingExtra, StoreTimeout

    for error in (MissingExtra("onnxruntime", "local"), StoreTimeout("no answer")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
