"""Where the model runs, and where the search does."""

import torch


def model_device(no_cuda: bool = False, gpu: int = 0) -> torch.device:
    """The GPU if there is one and it is not declined, the CPU otherwise."""
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpu)


def search_gpus() -> list[int]:
    """All GPUs that faiss can search on; none where faiss is built for the CPU alone."""
    import faiss

    return list(range(faiss.get_num_gpus())) if hasattr(faiss, "GpuIndexFlatIP") else []
