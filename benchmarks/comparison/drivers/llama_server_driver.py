"""llama.cpp's server, with continuous batching and a slot for each client: says its address, ends with its input."""

import argparse
import sys

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)  # positions of a slot
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_parallel, params.n_ctx, params.cont_batching = args.slots, args.slots * args.context, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.n_threads_http = max(params.n_threads_http, args.slots + 2)  # each stream holds one
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
