"""The answers of a sampler server that a run takes."""

from asymgrpo_app.rollout.types import SamplingSettings

VERSION = "run:1"
INFO = {"max_model_len": 32, "dtype": "float32", "vocabulary": 50}
SETTINGS = SamplingSettings(temperature=1.0, max_tokens=3, stop_token_ids=(1,))


def completion(tokens=(4, 5, 1), logprobs=(-0.5, -1.0, 0.0), reason="stop", version=VERSION):
    content = [{"token_id": token, "logprob": value} for token, value in zip(tokens, logprobs, strict=True)]
    span = {"version": version, "start": 0, "end": len(tokens)}
    choice = {"finish_reason": reason, "token_ids": list(tokens), "logprobs": {"content": content}}
    return {"choices": [choice | {"weight_versions": [span]}]}
