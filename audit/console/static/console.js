// Replaces the live part of a page when the server says that it has changed. Without this the pages work all the same.
(() => {
  "use strict";
  const bar = document.querySelector("[data-live]");
  const part = document.querySelector(".live");
  if (!bar || !part || !window.EventSource) return;
  const state = bar.querySelector(".livestate");
  const button = document.createElement("button");
  button.type = "button";
  bar.append(button);
  let source = null, again = 0, paused = false;

  const say = (text) => { if (state.textContent !== text) state.textContent = text; };

  // Who reads with the keyboard keeps their place; what was unfolded stays so; what is new is shown to be.
  const plain = (html) => { const t = document.createElement("template"); t.innerHTML = html; return t.innerHTML.trim(); };
  let last = plain(part.innerHTML);
  const stops = (root) => [...root.querySelectorAll("a, summary, [tabindex]")];
  const selecting = () => { const s = getSelection(); return !s.isCollapsed && part.contains(s.anchorNode); };
  let later = null; // what came while somebody was selecting, to copy it
  const replace = (html) => {
    later = selecting() ? html : null;
    if (later || plain(html) === last) return 0; // what is there already stays under the reader's hand
    last = plain(html);
    const focus = part.contains(document.activeElement) ? document.activeElement : null;
    const row = focus && focus.closest("tr[id]");
    const place = focus && stops(row || part).indexOf(focus);
    const href = focus && focus.getAttribute("href");
    const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.dataset.key));
    const known = new Set([...part.querySelectorAll("tr[id]")].map((r) => r.id));
    const scrolls = [...part.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((d) => { d.open = open.has(d.dataset.key); });
    part.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = scrolls[i] || 0; });
    let fresh = 0;
    if (known.size) part.querySelectorAll("tr[id]").forEach((r) => { if (!known.has(r.id)) { r.classList.add("fresh"); fresh++; } });
    if (focus) {
      const same = row && document.getElementById(row.id);
      const to = same ? stops(same)[place] : stops(part).find((e) => href && e.getAttribute("href") === href) || stops(part)[place];
      if (to) to.focus({ preventScroll: true });
    }
    return fresh;
  };

  document.addEventListener("selectionchange", () => { if (later && !selecting()) replace(later); });

  const stop = () => { clearTimeout(again); if (source) source.close(); source = null; };
  const start = () => {
    stop();
    if (paused || document.hidden) return;
    source = new EventSource(bar.dataset.live);
    let first = true;
    source.addEventListener("page", (e) => {
      const fresh = replace(e.data);
      if (first || !fresh) say("Live: what changes is shown at once.");
      else say("Live: " + fresh + (fresh === 1 ? " new event." : " new events."));
      first = false;
    });
    source.addEventListener("gone", () => { stop(); location.reload(); });
    source.onerror = () => {
      if (source && source.readyState !== EventSource.CLOSED) return; // it asks again by itself
      stop();
      say("Not live just now: trying again.");
      again = setTimeout(start, 10000);
    };
  };
  const show = () => { button.textContent = paused ? "Go live" : "Pause"; };
  button.addEventListener("click", () => {
    paused = !paused;
    show();
    if (paused) { stop(); say("Paused."); } else start();
  });
  document.addEventListener("visibilitychange", start);
  addEventListener("pagehide", stop);
  show();
  start();
})();
