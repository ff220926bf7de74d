// @ts-check
/**
 * The two ways to broadcast by HTTP: a batch of messages, and a single one whose body is the
 * payload.
 *
 * The batch route answers 202 whether or not a private message may be sent, and drops what may
 * not; only the single route tells.
 */
import { checkBatch } from './batch.mjs';
import { DatabaseError } from './database.mjs';
import { binarySize, isTooLarge, payloadSize } from './payload_size.mjs';

/** @typedef {import('./http.mjs').Call} Call */
/** @typedef {import('./http.mjs').Answer} Answer */
/** @typedef {import('./socket.mjs').Services} Services */

const ACCEPTED = { status: 202 };
const RATE_EXCEEDED = { status: 429, json: { message: 'You have exceeded your rate limit' } };
const BATCH_TOO_LARGE = {
  status: 429,
  json: { message: 'Too many messages to broadcast, please reduce the batch size' },
};
const BAD_TYPE = {
  status: 415,
  json: {
    error: 'Unsupported Media Type. Use application/json or application/octet-stream',
  },
};

/** @type {Record<import('./database.mjs').Trouble, Answer>} */
const TROUBLES = {
  RlsPolicyError: { status: 422, json: { message: 'RLS policy error' } },
  QueryCanceled: { status: 422, json: { message: 'Query canceled' } },
  MissingPartition: { status: 422, json: { message: 'Missing messages partition' } },
  UnableToConnectToProject: { status: 422, json: { message: 'Tenant database unavailable' } },
  DatabaseLackOfConnections: {
    status: 422,
    json: { message: 'Tenant database has too many connections' },
  },
  IncreaseConnectionPool: { status: 429, json: { message: 'Connection pool exhausted' } },
};

/**
 * @param {Call} call
 * @param {Services} services
 * @returns {Promise<Answer>}
 */
export async function broadcastBatch({ params, headers, claims }, services) {
  const { tenant } = services;
  const { messages, errors } = checkBatch(params.messages, tenant.limits.payloadKb);
  if (!messages) return { status: 422, json: { errors: { messages: errors } } };
  const refusal = checkRate(tenant, messages.length);
  if (refusal) return refusal;

  for (const message of messages) if (!message.isPrivate) send(tenant, message);
  for (const [topic, group] of groupByTopic(messages.filter(({ isPrivate }) => isPrivate))) {
    const caller = { topic, claims, headers };
    if (await isAllowed(services, caller)) for (const message of group) send(tenant, message);
  }
  return ACCEPTED;
}

/**
 * A batch must fit into what the average of the last minute leaves of the limit, so that one larger
 * than the limit never passes.
 *
 * @param {import('./tenant.mjs').Tenant} tenant
 * @param {number} count
 * @returns {Answer | null}
 */
function checkRate({ limits, counters }, count) {
  const { eventsPerSecond: limit } = limits;
  if (limit === null) return null;
  const { average } = counters.events;
  if (average > limit) return RATE_EXCEEDED;
  return count + average > limit ? BATCH_TOO_LARGE : null;
}

/**
 * @param {import('./tenant.mjs').Tenant} tenant
 * @param {import('./batch.mjs').BatchMessage} message
 */
function send(tenant, { topic, event, payload, isPrivate, id }) {
  /** @type {import('./frames.mjs').Content} */
  const content = {
    form: 'text',
    payload: { type: 'broadcast', event, payload, ...(id && { meta: { id } }) },
  };
  tenant.broadcast({ topic, isPrivate, content, id });
}

/**
 * Topics in their order, messages of a topic in that of the list.
 *
 * @param {import('./batch.mjs').BatchMessage[]} messages
 */
function groupByTopic(messages) {
  /** @type {Map<string, import('./batch.mjs').BatchMessage[]>} */
  const groups = new Map();
  for (const message of messages) {
    const group = groups.get(message.topic);
    if (group) group.push(message);
    else groups.set(message.topic, [message]);
  }
  return [...groups].sort(([a], [b]) => (a < b ? -1 : 1));
}

/**
 * A question that cannot be answered is a no.
 *
 * @param {Services} services
 * @param {import('./authorization.mjs').Caller} caller
 */
async function isAllowed({ authorization, tail, options }, caller) {
  tail?.start();
  try {
    return await authorization.mayWrite(caller, 'broadcast');
  } catch (error) {
    if (!(error instanceof DatabaseError)) throw error;
    options.log(`messages to ${caller.topic} dropped: ${error.message}`);
    return false;
  }
}

/**
 * @param {Call} call
 * @param {Services} services
 * @returns {Promise<Answer>}
 */
export async function broadcastSingle(call, services) {
  const { contentType, params, body, url, parts, headers, claims } = call;
  const { tenant, authorization, tail } = services;
  const [topic, event] = parts;
  const isBinary = contentType === 'application/octet-stream';
  if (contentType && contentType !== 'application/json' && !isBinary) return BAD_TYPE;

  const { payloadKb, eventsPerSecond } = tenant.limits;
  const size = isBinary ? binarySize(body) : payloadSize(params);
  if (payloadKb !== null && isTooLarge(size, payloadKb)) {
    return { status: 422, json: { errors: { payload: ['Payload size exceeds tenant limit'] } } };
  }
  const { average } = tenant.counters.events;
  if (eventsPerSecond !== null && average >= eventsPerSecond) return RATE_EXCEEDED;

  const isPrivate = readPrivate(params, url);
  if (isPrivate) {
    tail?.start();
    try {
      const allowed = await authorization.mayWrite({ topic, claims, headers }, 'broadcast');
      if (!allowed) return { status: 403, json: { message: 'Unauthorized' } };
    } catch (error) {
      if (error instanceof DatabaseError) return TROUBLES[error.trouble];
      throw error;
    }
  }
  const bytes = isBinary ? body : Buffer.from(JSON.stringify(params));
  tenant.broadcast({ topic, isPrivate, content: { form: 'user', event, isBinary, bytes } });
  return ACCEPTED;
}

/**
 * The flag is one of the merged parameters, so a payload with a key of that name decides it.
 *
 * @param {any} params of the body
 * @param {URL} url
 */
function readPrivate(params, url) {
  const value = Object.hasOwn(params, 'private') ? params.private : url.searchParams.get('private');
  return value === true || value === 'true';
}
