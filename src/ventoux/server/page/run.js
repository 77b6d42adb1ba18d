// One answer on its way.

import { ask } from "./api.js";

/** Asks, and collects what comes in `message`, which is whole at any time. */
export class Run {
  constructor(body) {
    this.body = body;
    this.message = { role: "assistant", content: "" };
    this.pieces = 0; // about as many as tokens
    this.controller = new AbortController();
  }

  stop() {
    this.controller.abort();
  }

  /** Until the answer is complete, stopped or broken -> undefined, or what went wrong. `took(piece)` for each piece. */
  async go(took) {
    const begun = performance.now();
    let failure, usage;
    try {
      for await (const chunk of ask(this.body, this.controller.signal)) {
        usage = chunk.usage ?? usage;
        const choice = chunk.choices?.[0];
        if (choice?.finish_reason) this.message.reason = choice.finish_reason;
        const piece = choice?.delta?.content;
        if (!piece) continue;
        this.last = performance.now();
        this.first ??= this.last;
        this.pieces++;
        this.message.content += piece;
        took(piece);
      }
    } catch (error) {
      if (this.controller.signal.aborted) this.message.reason = "stopped";
      else failure = error;
    }
    const tokens = usage?.completion_tokens ?? this.pieces;
    this.message.figures = {
      tokens,
      prompt: usage?.prompt_tokens,
      cached: usage?.prompt_tokens_details?.cached_tokens,
      first: this.first && (this.first - begun) / 1000,
      seconds: this.first && (this.last - this.first) / 1000,
    };
    return failure;
  }

  /** "12 tokens, 30.1 a second", so far */
  get progress() {
    return speed(this.pieces, (this.last - this.first) / 1000);
  }
}

function speed(tokens, seconds) {
  const counted = `${tokens} token${tokens === 1 ? "" : "s"}`;
  const rate = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : undefined; // the first token's time is the prompt's
  return rate === undefined ? counted : `${counted}, ${rate < 10 ? rate.toFixed(1) : Math.round(rate)} a second`;
}

/** What is said below an answer. */
export function told(message) {
  const { tokens, prompt, cached, seconds, first } = message.figures ?? {};
  const parts = [];
  if (message.reason === undefined) parts.push("broken off");
  if (message.reason === "stopped") parts.push("stopped");
  if (message.reason === "length") parts.push("cut at the limit of tokens");
  if (tokens !== undefined) parts.push(speed(tokens, seconds));
  if (prompt !== undefined) parts.push(`prompt ${prompt}${cached ? `, ${cached} of them kept` : ""}`);
  if (first !== undefined) parts.push(`first after ${first.toFixed(1)} s`);
  return parts.join(" · ");
}
