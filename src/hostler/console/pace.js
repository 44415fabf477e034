// How quickly requests are answered, from the list of them. Times are the server's. The words are those of `hostler top`.

const WINDOW_S = 10; // that rates and times are of
export const failed = (request) => request.outcome !== null && request.outcome !== undefined && request.outcome !== "ok";
export const endOf = (request) => request.at_s + request.took_s;
export const isWaiting = (request) =>
  !request.outcome && (request.first_byte_s ?? null) === null && !request.tries.some((one) => (one.ended_s ?? null) === null);
const tokensOf = (request) => request.completion_tokens ?? request.events;

// The smallest value that this share of them does not exceed; null of nothing. ordered: from the smallest.
export const percentile = (ordered, share) => (ordered.length ? ordered[Math.max(0, Math.ceil(share * ordered.length) - 1)] : null);
const spread = (values) => {
  values.sort((a, b) => a - b);
  return { p50: percentile(values, 0.5), p99: percentile(values, 0.99) };
};

// What happened in each of the last seconds: [0] is the second before `atS`.
function seconds(rows, atS, count) {
  const made = Array.from({ length: count }, () => ({ ended: 0, failed: 0, tokens: 0, firsts: [] }));
  const at = (moment) => made[Math.floor(atS - moment)];
  for (const one of rows) {
    const ends = endOf(one);
    if (one.outcome) {
      if (atS - ends >= count) continue;
      const slot = at(Math.min(ends, atS));
      slot.ended += 1;
      if (failed(one)) slot.failed += 1;
    }
    const first = one.first_byte_s ?? null;
    if (one.stream && first !== null) at(one.at_s + first)?.firsts.push(first);
    const tokens = tokensOf(one);
    if (!tokens) continue;
    // written evenly, from the first byte to the last
    const began = one.at_s + (first ?? one.tries.at(-1)?.at_s ?? 0);
    const each = tokens / Math.max(ends - began, 1e-3);
    const newest = Math.max(0, Math.floor(atS - ends));
    const oldest = Math.min(count - 1, Math.floor(atS - began));
    for (let slot = newest; slot <= oldest; slot += 1) {
      const share = Math.min(ends, atS - slot) - Math.max(began, atS - slot - 1);
      if (share > 0) made[slot].tokens += each * share;
    }
  }
  return made;
}

function sumUp(slots, spanS) {
  const total = { requests: 0, failed: 0, tokens: 0 };
  const firsts = [];
  for (const slot of slots) {
    total.requests += slot.ended / spanS;
    total.failed += slot.failed / spanS;
    total.tokens += slot.tokens / spanS;
    firsts.push(...slot.firsts);
  }
  return { ...total, ...spread(firsts) };
}

// The pace now. fromS: since when all requests are known.
export function paceOf(rows, atS, fromS) {
  const known = Math.max(1, Math.min(WINDOW_S, Math.ceil(atS - fromS)));
  const waiting = rows.filter(isWaiting).length;
  const underWay = rows.filter((one) => !one.outcome).length;
  return { ...sumUp(seconds(rows, atS, known), known), waiting, busy: underWay - waiting };
}

// The pace at moments of the last two minutes, the oldest first, as far back as requests are known.
export function pacesOf(rows, atS, fromS, everyS = 2, spanS = 120) {
  const known = Math.max(1, Math.min(spanS + WINDOW_S, Math.ceil(atS - fromS)));
  const slots = seconds(rows, atS, known);
  const found = [];
  for (let back = 0; back <= spanS && back < known; back += everyS) {
    const part = slots.slice(back, back + WINDOW_S);
    found.push(sumUp(part, part.length));
  }
  return found.reverse();
}

// Of each instance, over the last minutes: how many tries ended, how many of them failed, how long until it answered.
export function instancePaces(rows, atS, fromS, spanS = 300) {
  const since = atS - spanS;
  const of = new Map();
  for (const request of rows) {
    request.tries.forEach((one, at) => {
      if (!of.has(one.instance_id)) of.set(one.instance_id, { busy: 0, ended: 0, failed: 0, firsts: [] });
      const mine = of.get(one.instance_id);
      const isLast = at === request.tries.length - 1;
      const ends = one.ended_s ?? (request.outcome ? request.took_s : null);
      if (ends === null) mine.busy += 1;
      else if (request.at_s + ends >= since) {
        mine.ended += 1;
        const isBad = one.failure || (isLast && ["upstream_error", "stream_error", "timeout"].includes(request.outcome));
        if (isBad) mine.failed += 1;
      }
      if (one.failure || !isLast) return;
      // an answer in one piece: its first byte comes with its last
      const first = request.first_byte_s ?? (request.outcome === "ok" ? request.took_s : null);
      // earlier than this try: it goes on with a stream that another one began
      if (first !== null && first >= one.at_s && request.at_s + first >= since) mine.firsts.push(first - one.at_s);
    });
  }
  const span = Math.max(1, Math.min(spanS, atS - fromS));
  for (const mine of of.values()) Object.assign(mine, spread(mine.firsts), { rate: mine.ended / span });
  return of;
}
