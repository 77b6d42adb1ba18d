// The server's API as this page uses it, and what its refusals mean in words.

/** What went wrong, for people to read. */
export class ApiError extends Error {
  constructor(message, { passing = false } = {}) {
    super(message);
    this.passing = passing; // it may be over in a second
  }
}

/** Names of the models. Raises ApiError. */
export async function models() {
  const answer = await request("v1/models");
  const { data } = await answer.json();
  return data.map((model) => String(model.id));
}

/** The chunks of an answer as they come. Raises ApiError; AbortError once the signal says so. */
export async function* ask(body, signal) {
  const answer = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of lines(answer.body.getReader(), signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(sentence(chunk.error.message));
    yield chunk;
  }
  throw new ApiError("The connection ended before the answer was complete.");
}

/** The data of server-sent events. */
async function* lines(reader, signal) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      throw new ApiError("The connection broke before the answer was complete.");
    });
    if (done) return;
    const whole = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = whole.pop();
    for (const line of whole) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. It may have been stopped, or the network is gone.", { passing: true });
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const error = await answer.json().then((body) => body.error ?? {}, () => ({}));
  const said = sentence(error.message ?? `The server answered with status ${answer.status}`);
  const after = Number.parseInt(answer.headers.get("Retry-After"), 10);
  const later = Number.isFinite(after) ? ` in ${after} second${after === 1 ? "" : "s"}` : " in a while";
  if (error.code === "context_length_exceeded") {
    return new ApiError(
      `The conversation has ${error.n_prompt_tokens} tokens, and the model reads ${error.n_ctx} at most. ` +
        "Shorten a message, or begin a new chat.",
    );
  }
  if (error.code === "loading") return new ApiError("The model is being loaded.", { passing: true });
  if (answer.status === 401) return new ApiError("The server wants a key. Reload this page: it asks for one as a password.");
  if (answer.status === 429) return new ApiError(`The server has as much to do as it takes. Try again${later}.`);
  if (answer.status === 503) return new ApiError(`${said} Try again${later}.`);
  return new ApiError(said);
}

/** "no such model" -> "No such model." */
function sentence(text) {
  const said = String(text);
  return said.charAt(0).toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? "" : ".");
}
