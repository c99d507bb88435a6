// The value is an object of functions. Each looks at the page that it is called in and returns what is wrong with it,
// as texts for people.
(() => {
  "use strict";

  const describe = (element) => {
    const id = element.id ? "#" + element.id : "";
    const classes = [...element.classList].map((name) => "." + name).join("");
    const text = (element.getAttribute("aria-label") || element.innerText || element.value || "").trim().replace(/\s+/g, " ");
    return `<${element.localName}${id}${classes}>` + (text ? ` "${text.slice(0, 40)}"` : "");
  };
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true }) &&
    element.getClientRects().length > 0;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);

  // What may be scrolled sideways in itself: code, fields, and a figure that says so and can be scrolled by keyboard.
  const mayScroll = (element) => ["pre", "textarea", "input"].includes(element.localName) ||
    element.tabIndex >= 0 && element.matches("[aria-label],[aria-labelledby]") && element.querySelector("img,svg") && !element.innerText.trim();
  const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);

  // Controls that stop the Tab key. Of radio buttons with one name only one does.
  const stops = () => all("a[href],button,input:not([type=hidden]),select,textarea,summary,[tabindex],[contenteditable=true]")
    .filter((element) => !element.matches(":disabled") && element.tabIndex >= 0 && !element.closest("[inert]"))
    .filter((element) => element.type !== "radio" || element === [...document.getElementsByName(element.name)]
      .filter((other) => other.form === element.form).sort((a, b) => b.checked - a.checked)[0]);

  // A luminance as in WCAG, of a colour as computed styles have it; null if nothing of what is behind is covered.
  const luminance = (color) => {
    const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
    if (a === 0) return null;
    const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };

  // What of an element may show that it has the focus.
  const look = (element) => {
    const s = getComputedStyle(element);
    const outline = s.outlineStyle === "none" || s.outlineWidth === "0px" || luminance(s.outlineColor) === null
      ? "" : [s.outlineStyle, s.outlineWidth, s.outlineColor].join(" ");
    return [outline, s.boxShadow, s.backgroundColor, s.borderTopColor, s.borderTopWidth, s.color, s.textDecorationLine].join("|");
  };

  return {
    // Nothing is wider than the window.
    overflow(width) {
      const found = [];
      const whole = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth);
      if (whole > width) {
        const wide = all("body *").filter((element) => element.getBoundingClientRect().right > width + 0.5)
          .filter((element, i, others) => !others.some((other) => other !== element && element.contains(other)));
        found.push(`the page is ${whole} px wide in a window of ${width}: ` + wide.slice(0, 3).map(describe).join(", "));
      }
      for (const element of all("body *")) {
        if (scrolls(element) && element.scrollWidth > element.clientWidth && !mayScroll(element)) {
          found.push(`${describe(element)} is to be scrolled sideways: ${element.scrollWidth} px in ${element.clientWidth}`);
        }
      }
      return found;
    },

    // No word is broken, but those that are longer than a line of a telephone.
    words() {
      const found = [];
      const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const range = document.createRange();
      const lines = () => new Set([...range.getClientRects()].map((rect) => Math.round(rect.top))).size;
      for (let text = texts.nextNode(); text; text = texts.nextNode()) {
        if (!text.parentElement || !seen(text.parentElement)) continue;
        range.selectNodeContents(text);
        if (lines() < 2) continue;
        for (const word of text.data.matchAll(/[\p{L}\p{N}]+/gu)) {
          if (word[0].length < 2 || word[0].length > 16) continue;
          range.setStart(text, word.index);
          range.setEnd(text, word.index + word[0].length);
          const n = lines();
          if (n > 1) found.push(`"${word[0]}" is broken over ${n} lines in ${describe(text.parentElement)}`);
        }
      }
      return found.slice(0, 5);
    },

    // Whoever uses a finger hits what they mean.
    targets(least) {
      return all("button,select,textarea,summary,a.button,[role=button],input:not([type=hidden],[type=checkbox],[type=radio])")
        .map((element) => [element, element.getBoundingClientRect()])
        .filter(([, rect]) => rect.height < least - 0.5 || rect.width < least - 0.5)
        .map(([element, rect]) => `${describe(element)} is ${Math.round(rect.width)} x ${Math.round(rect.height)} px, at least ${least} are wanted`);
    },

    // Who asks for dark pages gets them, and the others don't.
    scheme(dark) {
      let behind = null;
      for (const element of [document.body, document.documentElement]) {
        behind ??= luminance(getComputedStyle(element).backgroundColor);
      }
      // Without a colour of the page's it is the browser's, which is dark only for a page that says that it can be.
      behind ??= dark && getComputedStyle(document.documentElement).colorScheme.includes("dark") ? 0 : 1;
      if (dark && behind > 0.2) return ["the page is light where dark ones are preferred"];
      if (!dark && behind < 0.5) return ["the page is dark where light ones are preferred"];
      return [];
    },

    // Links lead somewhere.
    links() {
      const found = [];
      for (const link of document.querySelectorAll("a")) {
        const href = link.getAttribute("href");
        if (href === null || href === "#" || /^javascript:/i.test(href)) {
          found.push(`${describe(link)} leads nowhere`);
        } else if (link.hash && link.href.split("#")[0] === location.href.split("#")[0] &&
          !document.getElementById(decodeURIComponent(link.hash.slice(1)))) {
          found.push(`${describe(link)} leads to ${link.hash}, which is not on the page`);
        }
      }
      return found;
    },

    // What can be clicked can be reached: a pointer is the sign of it.
    clickable() {
      return all("body *").filter((element) => getComputedStyle(element).cursor === "pointer" || element.hasAttribute("onclick"))
        .filter((element) => !element.closest("a[href],button,input,select,textarea,summary,label,[tabindex]"))
        .filter((element, i, others) => !others.includes(element.parentElement))
        .map((element) => `${describe(element)} can be clicked, and not be reached by keyboard`);
    },

    // The first stop of the Tab key leads past the navigation.
    skip() {
      const [first] = stops();
      const target = first?.hash && document.getElementById(decodeURIComponent(first.hash.slice(1)));
      if (!document.querySelector("nav")) return [];
      return target && (target.matches("main") || target.closest("main")) ? [] :
        [`the first stop of the Tab key is ${first ? describe(first) : "nothing"}, not a link to the main part`];
    },

    // The navigation says which page this is.
    current() {
      const here = [...document.querySelectorAll("nav a[href]")].filter((link) => link.href === location.href);
      return here.filter((link) => !link.closest("[aria-current]")).map((link) => `${describe(link)} is not marked as the current page`);
    },

    // Remembers what is to be reached by keyboard, and how it looks without the focus.
    beginTour() {
      document.activeElement.blur();
      const tour = { stops: stops(), looks: new Map(), reached: new Set(), found: [] };
      for (const element of all("body *")) tour.looks.set(element, look(element));
      globalThis.browserTour = tour;
      return tour.stops.length;
    },

    // Called after each Tab. Says where the focus is: "" outside of the page, "again" where it has been before.
    tour() {
      const tour = globalThis.browserTour;
      const element = document.activeElement;
      if (!element || element === document.body || element === document.documentElement) return "";
      if (tour.reached.has(element)) return tour.last === element ? "stays" : "again";
      tour.reached.add(element);
      tour.last = element;
      if (look(element) === tour.looks.get(element)) tour.found.push(`${describe(element)} does not show that it has the focus`);
      const rect = element.getBoundingClientRect();
      if (rect.bottom <= 0 || rect.right <= 0 || rect.top >= innerHeight || rect.left >= innerWidth || rect.width * rect.height < 4) {
        tour.found.push(`${describe(element)} has the focus and is not to be seen`);
      }
      return describe(element);
    },

    endTour() {
      const tour = globalThis.browserTour;
      delete globalThis.browserTour;
      document.activeElement.blur(); // links past the navigation lie over it while they have the focus
      for (const element of tour.stops) {
        if (!tour.reached.has(element)) tour.found.push(`${describe(element)} is not reached by the Tab key`);
      }
      return tour.found;
    },

    // Where the focus is, by the name that it has for people.
    focused() {
      const element = document.activeElement;
      if (!element || element === document.body || element === document.documentElement) return "";
      const labels = element.labels?.length ? [...element.labels].map((label) => label.innerText).join(" ") : "";
      const by = (element.getAttribute("aria-labelledby") || "").split(/\s+/).map((id) => document.getElementById(id)?.innerText || "").join(" ");
      const name = by.trim() || element.getAttribute("aria-label") || labels || element.innerText || element.title || "";
      return name.trim().replace(/\s+/g, " ");
    },

    // Where the focus is, as focused, in a search: null where it has been in the same search before.
    searched(begin) {
      if (begin) globalThis.browserBeen = new Set();
      const been = globalThis.browserBeen;
      const element = document.activeElement;
      if (element === document.body) return ""; // between the last stop and the first one
      if (been.has(element)) return null;
      been.add(element);
      return this.focused();
    },

    focusedInfo() { return document.activeElement ? describe(document.activeElement) : ""; },

    // What is folded away is looked at, too.
    openDetails() {
      globalThis.browserOpened = all("details:not([open])");
      for (const details of globalThis.browserOpened) details.open = true;
      return true;
    },

    closeDetails() {
      for (const details of globalThis.browserOpened) details.open = false;
      delete globalThis.browserOpened;
      return true;
    },

    // Lines that have to be scrolled are broken while axe-core looks at colours: it can't tell what is behind a text that is
    // cut off.
    unfold() {
      globalThis.browserFolded = all("body *").filter(scrolls).map((element) => [element, element.style.cssText]);
      for (const [element] of globalThis.browserFolded) {
        Object.assign(element.style, { overflow: "visible", whiteSpace: "pre-wrap", overflowWrap: "anywhere" });
      }
      return true;
    },

    fold() {
      for (const [element, style] of globalThis.browserFolded) element.style.cssText = style;
      delete globalThis.browserFolded;
      return true;
    },

    // The cards of a page that shows what has happened, each with its sides.
    cards() {
      return all(".sides").map((sides) => ({
        Title: (sides.closest("section[aria-labelledby],main").querySelector("h1,h2")?.innerText || "").trim(),
        Sides: [...sides.querySelectorAll(".side")].map((side) => ({
          Name: (side.querySelector("h2,h3")?.innerText || "").trim(),
          Good: side.classList.contains("good"),
          Verdict: [...side.querySelectorAll(".verdict")].filter(seen).map((verdict) => verdict.innerText.trim()).join(" "),
        })),
      }));
    },

    // The addresses that the page's links have, on this service.
    addresses() {
      return [...document.querySelectorAll("a[href]")].filter((link) => !link.hasAttribute("download"))
        .map((link) => link.href.split("#")[0]);
    },
  };
})()
