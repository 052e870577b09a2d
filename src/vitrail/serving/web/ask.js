// Questions to the server: its own address alone, with the token where it wants one.
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const pause = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));

// Give the JSON of an answer; asks again while the server is busy, and tells `busy` so.
export async function ask(path, body, busy = () => {}) {
  for (let tries = 0; ; tries++) {
    const headers = {};
    const token = sessionStorage.getItem("token");
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "image/unknown";
    let answer;
    try {
      answer = await fetch(path, { method: body ? "POST" : "GET", headers, body });
    } catch {
      throw new Refused(0, "offline", "");
    }
    if (answer.ok) return answer.json();
    const { code, message } = await answer.json().catch(() => ({ code: "http", message: answer.statusText }));
    if (answer.status !== 429 || tries === 20) throw new Refused(answer.status, code, message);
    busy();
    await pause((Number(answer.headers.get("Retry-After")) || 1) * (0.5 + Math.random()));
  }
}
