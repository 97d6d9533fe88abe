(() => {
  const wrong = [];
  const say = (what, e) => wrong.push(what + ": " + (e ? e.outerHTML.replace(/\s+/g, " ").slice(0, 120) : ""));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = (e) => { const r = e.getBoundingClientRect(); return r.width > 1 && r.height > 1 && getComputedStyle(e).visibility !== "hidden"; };
  const name = (e) => (e.getAttribute("aria-label") || e.textContent || e.getAttribute("title") || "").trim();

  if (!document.documentElement.lang) say("no language");
  if (!document.title) say("no title");
  if (all("main").length !== 1) say("not one main");
  if (all("h1").length !== 1) say("not one h1");
  let level = 0;
  for (const h of all("h1, h2, h3, h4, h5, h6")) {
    const now = Number(h.tagName[1]);
    if (now > level + 1) say("a heading skips a level", h);
    if (!name(h)) say("an empty heading", h);
    level = now;
  }
  const ids = new Map();
  for (const e of all("[id]")) { if (ids.has(e.id)) say("two elements of one id", e); ids.set(e.id, e); }
  for (const e of all("input:not([type=hidden]), select, textarea")) if (!(e.labels && e.labels.length && name(e.labels[0]))) say("a field without a label", e);
  for (const e of all("a[href], button, summary")) if (!name(e)) say("a control without a name", e);
  for (const e of all("[aria-labelledby], [aria-describedby]"))
    for (const id of ((e.getAttribute("aria-labelledby") || "") + " " + (e.getAttribute("aria-describedby") || "")).trim().split(/\s+/)) if (!ids.has(id)) say("a name that is not there", e);
  for (const e of all("svg")) if (e.getAttribute("role") !== "img" || !e.querySelector("title")) say("a drawing without a name", e);
  for (const e of all("nav, [role=region], [role=search], section")) if (!e.getAttribute("aria-label")) say("a landmark without a name", e);
  for (const e of all("table")) if (!e.caption || !name(e.caption)) say("a table without a caption", e);
  for (const e of all("th")) if (!e.getAttribute("scope")) say("a header cell without a scope", e);
  for (const e of all("[tabindex]")) if (e.tabIndex > 0) say("an order of its own", e);
  for (const e of all(".scroll")) if (e.scrollWidth > e.clientWidth + 1 && e.tabIndex !== 0) say("the keyboard cannot scroll it", e);
  for (const e of all("button, input:not([type=hidden]), select")) if (seen(e) && e.getBoundingClientRect().height < 24) say("a target below 24 px", e);

  if (document.documentElement.scrollWidth > innerWidth) {
    const widest = all("body *").filter((e) => !e.closest(".scroll .scroll, .scroll > *") && e.getBoundingClientRect().right > innerWidth + 1).pop();
    say("the page is wider than the window, " + document.documentElement.scrollWidth + " > " + innerWidth, widest);
  }

  // WCAG 2.2, 1.4.3, by what was computed.
  const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return { r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1 }; };
  const over = (top, under) => ({ r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a), b: top.b * top.a + under.b * (1 - top.a), a: 1 });
  const light = (c) => {
    const [r, g, b] = [c.r, c.g, c.b].map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (e) => {
    const layers = [];
    for (let x = e; x; x = x.parentElement) { const c = parse(getComputedStyle(x).backgroundColor); if (c.a > 0) layers.push(c); if (c.a === 1) break; }
    return layers.reverse().reduce((under, top) => over(top, under), { r: 255, g: 255, b: 255, a: 1 });
  };
  let texts = 0;
  const check = (e, style, color, label) => {
    const under = back(e), text = over(parse(color), under);
    const [hi, lo] = [light(text), light(under)].sort((a, b) => b - a);
    const ratio = (hi + 0.05) / (lo + 0.05), size = parseFloat(style.fontSize);
    const least = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700 ? 3 : 4.5;
    texts++;
    if (ratio < least) say(label + " too faint, " + ratio.toFixed(2) + " < " + least, e);
  };
  for (const e of all("body *")) {
    if (!seen(e) || e.matches("svg title, svg desc") || !([...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.matches("input, select"))) continue;
    const style = getComputedStyle(e);
    check(e, style, e instanceof SVGElement ? style.fill : style.color, "text");
    if (e.placeholder) { const p = getComputedStyle(e, "::placeholder"); check(e, p, p.color, "placeholder"); }
  }
  // 1.4.11: what a drawing says, and where a field is.
  for (const e of all(".life, .refused, .now, .overlap, input:not([type=hidden]), select")) {
    const style = getComputedStyle(e);
    const color = parse(e.matches("line") ? style.stroke : e instanceof SVGElement ? style.fill : e.matches("input, select") ? style.borderTopColor : style.backgroundColor);
    const under = back(e.parentElement), [hi, lo] = [light(over(color, under)), light(under)].sort((a, b) => b - a);
    if ((hi + 0.05) / (lo + 0.05) < 3) say("a shape too faint", e);
  }
  if (texts < 5) say("only " + texts + " texts were looked at");
  return wrong;
})()
