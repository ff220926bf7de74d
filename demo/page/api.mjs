// @ts-check
/** The application's JSON interface, as the signed-in person and as this tab. */

/**
 * Who causes a change: this tab. The server hands it on with each write, and it comes back in the
 * event, so that a tab knows its own echo.
 */
export const origin = crypto.randomUUID();

let token = '';

export const authorise = (/** @type {string} */ value) => (token = value);

/**
 * @param {'GET' | 'POST' | 'PATCH'} method
 * @param {string} path
 * @param {object} [body]
 */
export async function call(method, path, body) {
  /** @type {Record<string, string>} */
  const headers = { 'content-type': 'application/json', 'x-outbox-origin': origin };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(`api/${path}`, {
    method,
    headers,
    body: body && JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.message);
  return answer;
}

/**
 * One fetch at a time; whatever is asked for meanwhile becomes the next one. So an answer never
 * overtakes a newer one, and a burst of events costs two fetches.
 *
 * @param {{ some: (ids: string[]) => Promise<unknown>, all: () => Promise<unknown> }} fetches
 */
export function createRefetch({ some, all }) {
  /** @type {Set<string>} */
  let ids = new Set();
  let everything = false;
  /** @type {Promise<void> | null} */
  let running = null;

  const run = async () => {
    try {
      while (everything || ids.size > 0) {
        const wanted = everything ? null : [...ids];
        everything = false;
        ids = new Set();
        await (wanted ? some(wanted) : all());
      }
    } finally {
      running = null;
    }
  };
  return {
    /** @param {string[]} wanted */
    some(wanted) {
      wanted.forEach((id) => ids.add(id));
      return (running ??= run());
    },
    all() {
      everything = true;
      return (running ??= run());
    },
  };
}

const RECENT_MAX = 200;

/**
 * Rows that were lately fetched by their ids, to name what an event speaks of.
 *
 * @template {{ id: string }} Row
 */
export function createRecent() {
  /** @type {Map<string, Row>} */
  const rows = new Map();
  return {
    /** @param {Row[]} fetched */
    add(fetched) {
      for (const row of fetched) {
        rows.delete(row.id); // So that it is the youngest.
        rows.set(row.id, row);
      }
      for (const id of rows.keys()) if (rows.size > RECENT_MAX) rows.delete(id);
    },
    find: (/** @type {string} */ id) => rows.get(id),
  };
}
