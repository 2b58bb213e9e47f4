// Asking the server: JSON, bytes, and answers that come line by line. Errors carry the server's own words.

/** What went wrong, in the server's words. `status` is 0 where the server did not answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function asked(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let words = `The server answered ${answer.status}.`;
  try {
    words = (await answer.json()).error.message;
  } catch {
    // no JSON: the status has to do
  }
  throw new ApiError(answer.status, words);
}

/** The query string of an object; null, undefined and "" are left out, lists give a key several times. */
export function query(values) {
  const given = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") given.append(key, each);
    }
  }
  const text = given.toString();
  return text ? `?${text}` : "";
}

/** JSON from a path. */
export async function get(path, values = {}, signal = undefined) {
  return (await asked(path + query(values), { signal })).json();
}

/** Bytes from a path. */
export async function bytes(path, values = {}, signal = undefined) {
  return (await asked(path + query(values), { signal })).arrayBuffer();
}

/** Send JSON; gives the JSON of the answer, or null where it is empty. */
export async function send(method, path, body = undefined, signal = undefined) {
  const answer = await asked(path, {
    method,
    signal,
    headers: { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

/** Send JSON and read an answer of `text/event-stream`: each `data:` is given to `tell` as a value. */
export async function stream(path, body, tell, signal = undefined) {
  const answer = await asked(path, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data) tell(JSON.parse(data));
    }
  }
}
